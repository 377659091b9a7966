"""How good is it: texts in, numbers out, every number with its interval, its signature and its baselines.

scores = eval.score("predictions.jsonl", "studies.jsonl", floors="floors/")
print(scores)                                 # tables
scores["label-f1/14/macro/neg"].value         # one number
scores.save("scores.json")
eval.metric("rouge-l/coco").per_sample(references, predictions)
"""

from eval.metric import metric
from eval.scores.readers import ScoreError
from eval.scores.result import Scores
from eval.scores.suite import score

__all__ = ["ScoreError", "Scores", "metric", "score"]
