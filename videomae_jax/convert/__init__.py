"""Checkpoints of other codebases to our parameter trees and back; nothing here is needed to train."""
