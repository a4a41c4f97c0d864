"""Networks: plain `nn.Module`s, without Ray."""
