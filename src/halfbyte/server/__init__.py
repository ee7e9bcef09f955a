"""The HTTP server: OpenAI's and Anthropic's protocols over `Model.astream`, for `halfbyte serve`."""
