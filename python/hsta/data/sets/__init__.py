"""The data sets of the field, a file each."""
