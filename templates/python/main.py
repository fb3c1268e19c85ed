def handle(request):
    name = request.query.get("name", "world")
    return f"Hello, {name}!\n"
