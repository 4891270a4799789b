"""Networks that are used and not trained. None is an nn.Module attribute of what is."""
