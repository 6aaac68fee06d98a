"""The compiler: from a model to a bundle, one file a stage."""
