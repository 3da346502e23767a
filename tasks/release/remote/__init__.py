"""What goes into an export that brings its own code, beside the files of `model/`."""
