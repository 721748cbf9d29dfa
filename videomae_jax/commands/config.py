"""The `config` command: the resolved config and its recipe card."""

from videomae_jax.commands import arguments


def main(argv: list[str]) -> int:
    """Prints the card, then every field with its value, also where there is no card: a field may be what is wrong."""
    parser = arguments.Parser("config", description="Print the recipe card of a config and every field that can be overridden.")
    arguments.add_config(parser)
    parser.add_argument("--json", action="store_true", help="print the resolved config as JSON instead")
    options, assignments = arguments.parse(parser, argv)
    config = arguments.resolve(options, assignments)
    from videomae_jax import card, forecast
    from videomae_jax import config as configs
    from videomae_jax.assembly import assemble

    if options.json:
        print(configs.to_json(config))
        return 0
    fields, trust = configs.flat(config), tuple(options.trust)
    try:
        here = forecast.without_index(config, videos=forecast.VIDEOS, trust=trust, say=arguments.say)
        print(card.text(card.card(assemble(here, trust=trust))))
    finally:
        for name, value in fields.items():
            print(f"--config.{name}={value!r}")
    return 0
