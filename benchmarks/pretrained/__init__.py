"""The study of a real pretrained model: whether keeping several right answers works there too."""
