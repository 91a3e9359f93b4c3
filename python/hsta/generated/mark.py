"""How generated data are marked, so that nobody takes them for recordings."""

MARKER = "generated.json"  # says of a folder that what is in it is generated, and how
NO_EVIDENCE = "generated data: no evidence about real faces"
