"""`tapestry finetune ...`: which commands there are."""

import typer

from tapestry_finetune import language_commands, rebase_commands, recipe_commands
from tapestry_finetune.charter.commands import app as charter_app
from tapestry_finetune.doctor_commands import doctor
from tapestry_finetune.evaluation.commands import evaluate

app = typer.Typer(
    help="Turn a consensus checkpoint into a model of your own language.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)
app.command()(doctor)
app.add_typer(charter_app, name="charter")
app.command()(recipe_commands.demo)
app.command()(recipe_commands.init)
app.command()(recipe_commands.plan)
app.command()(recipe_commands.run)
app.command()(recipe_commands.verify)
app.command("eval")(evaluate)
app.command()(rebase_commands.rebase)
app.command()(language_commands.language)
app.command()(language_commands.sample)
