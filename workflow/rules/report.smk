# One page with verdict, tables, figures and protocol, which needs no network.


rule html_report:
    input:
        LAYOUT.comparison / "table.csv",
        [LAYOUT.overoptimization / name for name in EXPERIMENT.overoptimization_files()],
        diagnostics_tables() if config["diagnostics"]["benchmarks"] else [],
        asked=asked("html_report"),
    output:
        made_with=made_with("html_report"),
        page=report(LAYOUT.report, category="Report"),
    log:
        f"{FOLDER}/logs/html_report.log",
    params:
        config_file=config_file,
        experiment=experiment_folder,
    message:
        "Write the report"
    shell:
        "rm-methods report --config {params.config_file:q} --experiment {params.experiment:q} --out {output.page:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
