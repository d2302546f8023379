"""From scheduled TIR to machine code in a library."""
