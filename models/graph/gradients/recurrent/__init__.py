"""Gradients of RNN, GRU and LSTM."""
