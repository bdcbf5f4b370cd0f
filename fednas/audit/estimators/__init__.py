"""Lower bounds on epsilon from what an attacker guessed of canaries, each with its source and assumption."""
