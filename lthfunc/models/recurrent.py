"""A recurrent network that predicts the next character."""

from __future__ import annotations

from torch import Tensor, nn


class CharLSTM(nn.Module):
    """Inputs (n, length), characters' numbers; outputs (n, length, vocabulary), logits of the next character.

    LSTM layers of `width` between an embedding and a linear layer (Zaremba et al. 2014, sec. 3), from a state of zeros.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, *, layers: int = 2, width: int = 256, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(classes, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.characters(x))
        return self.head(outputs)
