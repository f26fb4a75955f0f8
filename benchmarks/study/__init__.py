"""The study: what training methods keep of several right answers, at equal samples, as settings of the library."""
