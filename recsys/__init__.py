"""A multistage recommender. `recsys.Recommender` answers from a finished run."""

__version__ = "0.1.0"
__all__ = ["Recommender"]


def __getattr__(name: str):
    "Return `Recommender`, imported when it is first used, so that `import recsys` stays light."
    if name == "Recommender":
        from recsys.recommend.pages import RunRecommender

        return RunRecommender
    raise AttributeError(f"module recsys has no attribute {name}")
