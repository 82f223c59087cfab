"""The networks and their layers. No data, no optimizer."""
