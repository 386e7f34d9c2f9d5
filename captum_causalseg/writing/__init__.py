"""What leaves the program: files that appear whole or not at all, names that every terminal and table takes."""
