"""``python -m annulus …`` is the program ``annulus``."""

from annulus_program import main

if __name__ == "__main__":
    main()
