"""Networks with parameters: autoencoders, critics, denoising backbones."""
