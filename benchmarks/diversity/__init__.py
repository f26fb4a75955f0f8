"""ModeBench: accuracy and diversity of training methods, at equal samples, with statistics."""
