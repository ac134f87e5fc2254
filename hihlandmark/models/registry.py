"""The table of models: name -> architecture and configuration. Adding a model is adding a row."""
