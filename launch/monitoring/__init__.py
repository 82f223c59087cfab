"""What watches the metrics: rules, alerts and dashboards, generated from declarations."""
