"""What a packet's first bytes say of its picture, codec by codec."""
