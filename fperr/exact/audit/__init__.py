"""Is what was computed exactly true of the function that PyTorch computes?"""
