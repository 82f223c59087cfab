"""A trained network by itself: weights, class names, preprocessing. Changes nothing."""
