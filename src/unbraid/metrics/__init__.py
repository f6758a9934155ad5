"""Measures of what representations hold. Importing needs numpy only; scikit-learn and scipy are imported where used."""
