"""From files as hospitals keep them to the pixels and tables a model sees."""
