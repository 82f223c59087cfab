"""A job under fire: a fault of one of twelve kinds each minute, by a seed that replays."""
