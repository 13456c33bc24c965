"""Models of transformers: choice of class, loading without custom code, check of tensors, random inputs."""
