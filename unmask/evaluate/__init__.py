"""What a trained model is worth: perplexity with its errors, and samples with their cost."""

from unmask.evaluate.ngram import Bigram, Unigram
from unmask.evaluate.perplexity import baselines, errors, perplexity
from unmask.evaluate.writing import write

__all__ = ["Bigram", "Unigram", "baselines", "errors", "perplexity", "write"]
