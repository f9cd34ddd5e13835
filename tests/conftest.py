"""What every test may use. Being here, this file also puts the helpers beside it on the import path."""
