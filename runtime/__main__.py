"""Serves a model repository in the foreground: python -m runtime model_repository"""

from runtime.serve import main

if __name__ == "__main__":
    main()
