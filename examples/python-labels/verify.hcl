register = "${scratch}/register"
labels = {
  "made-by" = "python"
}
forbidden = ["made-by"]
