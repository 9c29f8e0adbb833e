from tilth.cli import main

main()
