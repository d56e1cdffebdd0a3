"""A Raspberry Pi without a Raspberry Pi: arm64 Debian under emulation, reached over real SSH."""
