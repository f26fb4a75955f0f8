"""The diversity study: accuracy and variety of training methods at equal samples, with statistics."""
