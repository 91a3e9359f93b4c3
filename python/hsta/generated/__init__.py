"""Generated micro-expression clips: a data set that anybody can have. No evidence about real faces."""
