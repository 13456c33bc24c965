"""Models of transformers: which class, loaded without code, what it finds, made-up inputs."""
