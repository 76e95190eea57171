"""What is remembered of a user. Names and descriptions are what the model goes by."""

from pydantic import BaseModel, Field


class Preference(BaseModel):
    """One thing that the user likes or dislikes."""

    topic: str = Field(description="what it is about, in a word or two")
    opinion: str = Field(description="what the user thinks of it")


class Fact(BaseModel):
    """One fact of the user's life."""

    statement: str = Field(description="the fact, as a sentence of its own")
