"""Offers `whisper` as a Twisted plugin. Declarations only: any `twistd` may import it."""

from echod import HandlerPlugin

whisper = HandlerPlugin("whisper", "echod_shout:whisper")
