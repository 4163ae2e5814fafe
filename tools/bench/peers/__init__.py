"""One job in edgefold, Flower and NVFLARE, side by side."""
