"""Where in a picture the evidence for an answer lies."""
