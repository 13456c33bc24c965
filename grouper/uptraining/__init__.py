"""Healing by training: an exported model learns from its original what merging took from it."""
