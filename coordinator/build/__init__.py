"""From a model folder to a bundle: graphs, weights, trainable tensors, calibration."""
