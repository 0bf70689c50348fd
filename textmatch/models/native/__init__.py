"""The native engine: a C++ kernel for BERT-like models on x86-64, its binding and its loader."""
