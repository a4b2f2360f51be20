"""The parts of bench/compare_torch.py."""
