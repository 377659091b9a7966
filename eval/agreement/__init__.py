"""How well do metrics agree with radiologists? Rated reports in, coefficients with intervals and tests out."""
