"""Many files at once on a cluster: answers for new ones, figures for labelled ones."""
