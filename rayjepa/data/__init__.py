"""From files to clips: manifest, tape, decode. Free of imports: the decoder's child starts from this package."""
